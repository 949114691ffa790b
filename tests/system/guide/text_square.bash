curl -X POST "http://localhost:8081/user/ai/tasks/submit" \
-H "Content-Type: application/json" \
-H "Authorization: Bearer YOUR_JWT_TOKEN" \
-d '{
"modelName": "sc_soraimg_text_1x1",
"prompt": "一个可爱的橘猫在窗台上晒太阳,温馨的室内场景,柔和的光线"
}'
