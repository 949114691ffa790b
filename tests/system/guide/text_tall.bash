curl -X POST "http://localhost:8081/user/ai/tasks/submit" \
-H "Content-Type: application/json" \
-H "Authorization: Bearer YOUR_JWT_TOKEN" \
-d '{
"modelName": "sc_soraimg_text_2x3",
"prompt": "高耸的瀑布从山崖飞流而下,竖构图,气势磅礴"
}'
