curl -X GET "http://localhost:8081/user/ai/tasks/list?page=1&size=10&taskType=text_to_image" \
-H "Authorization: Bearer YOUR_JWT_TOKEN"
